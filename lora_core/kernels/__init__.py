"""Fast forms of what training spends its time on, each equal to a plain one."""
