"""What a run leaves for others: folders that move alone (alone.py), their cards (card.py), and the hub (hub.py)."""
