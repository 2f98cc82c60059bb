"""What lies on disk between debates and agents: rows on their way to a training, and what trainings came to."""
