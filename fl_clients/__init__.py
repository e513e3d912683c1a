"""The data owner's side: connects the core to Flower, under the data owner's own policy."""
