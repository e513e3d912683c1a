"""A data owner's work: its records, divided and turned into token ids, and the tuning of an adapter on them."""
