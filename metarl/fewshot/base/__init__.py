"""What few-shot learners share."""
