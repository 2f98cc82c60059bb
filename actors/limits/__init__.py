"""What an ask passes before a try is sent, and what is done when one fails: rates, room, money, tries."""
