"""From a stage's rows to adapters: the trainings of all who learn."""
