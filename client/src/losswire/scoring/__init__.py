"""Batch scoring: shards of files in, a loss for every row and an exact summary out, whatever happens in between.

inputs    the shards that the user means, wherever they are      shards/    the rows of one shard, a part at a time
manifest  what is scored, how and by whom                        lock       one runner a folder
runner    keeps evaluations under way and commits shards         row_file   the results of one shard, and their sums
tally     exact sums by group, class and confidence              summary    those of all shards, as JSON
folder    writes that survive a crash                            merging    folders of several runners to one
report    a page to look at
"""
