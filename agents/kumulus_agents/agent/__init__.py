"""The agent: work orders of one host in, what is so out. Decides nothing that a controller decides.

It never imports kopf, and touches machines only through the drivers beside it. One event loop may
hold thousands of agents (`fleet`): nothing here keeps a thread, or a task for each work order.
"""
