"""Tables, charts and findings of the harness's tasks."""
