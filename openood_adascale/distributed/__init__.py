"""Work on many processes: torch.distributed's group, of which one process directs and the others work for it."""
