"""Experience: environments as tasks, collection, returns and policy gradients."""
