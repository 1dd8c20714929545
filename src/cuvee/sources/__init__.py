"""Where tensors come from: folders, single files, adapters on a base, the hub, live objects."""
