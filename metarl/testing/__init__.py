"""Checks of your own task families and learners. `metarl check-tasks` and `metarl check-agent` run them."""

from metarl.testing.learners import check_agent as check_agent
from metarl.testing.tasks import check_before_training as check_before_training
from metarl.testing.tasks import check_task_distribution as check_task_distribution
