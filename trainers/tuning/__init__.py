"""From rows to weights: one training of one agent, in the process that holds the model."""
