"""Checks for task families and learners of one's own, run by `metarl check-tasks` and `metarl check-agent`."""

from metarl.testing.learners import check_agent as check_agent
from metarl.testing.tasks import check_before_training as check_before_training
from metarl.testing.tasks import check_task_distribution as check_task_distribution
