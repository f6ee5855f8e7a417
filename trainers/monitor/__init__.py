"""What is seen of a run while it runs: the plan, a row for each evaluation, the end; on a terminal, in a file, in a
notebook, and in tools that track runs. The loop tells `monitor.Monitor` how far it is, and knows nothing of the rest.
"""
