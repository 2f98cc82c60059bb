"""How actors reach each other: batched tells, calls with Ray's errors put into moot's, and who holds which ask."""
