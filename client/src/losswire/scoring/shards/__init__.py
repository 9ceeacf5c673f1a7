"""The rows of a shard, some at a time, in memory that does not grow with the shard; a file for each kind of format."""
