"""What a run leaves behind: its folder, the journals, and copies of them elsewhere."""
