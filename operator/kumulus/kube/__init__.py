"""Talking to the API server: client, reflector, store, work queue, patching, election.

The only package that imports `kubernetes`. It knows no kind of Kumulus but through `kumulus.api.base`.
"""
