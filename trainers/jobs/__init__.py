"""Many trainings side by side: on Ray Train here, or as jobs of a service."""
