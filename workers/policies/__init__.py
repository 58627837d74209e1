"""What is kept: settings and budgets, what a policy is shown, how it scores, which entries follow from it."""
