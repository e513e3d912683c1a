"""``scaleot compare``: builders, seeds and settings side by side on one model, resumable."""
