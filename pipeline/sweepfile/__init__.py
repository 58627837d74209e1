"""What a sweep file may say, and what a person is told of one that says something else."""
