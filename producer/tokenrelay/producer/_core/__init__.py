"""What drives both the sync and the asyncio client: written once, without I/O of its own where it can be."""
