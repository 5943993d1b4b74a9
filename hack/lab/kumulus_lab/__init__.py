"""The lab: a Kubernetes control plane and any number of hosts on one machine.

For people who develop Kumulus or want to see it run. Nothing of the product may import it.
"""
