"""What a data owner tunes, and how it is plugged into the full model."""
