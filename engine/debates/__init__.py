"""How debates proceed: arenas and hosts on a cluster, one stage of tasks at a time."""
