"""A replica: one engine on one device, in a process of its own, spoken to in messages."""
