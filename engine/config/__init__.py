"""What a recipe says, read and checked before anything starts."""
