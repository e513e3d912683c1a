"""What crosses the wire in a round, how it is checked, and how the updates become the next adapter. No Flower here."""
