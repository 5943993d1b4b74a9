"""Images in OCI registries (OCI distribution spec 1.1).

A small client of our own: three kinds of GET requests. oras and other libraries bring their own HTTP
layer, follow redirects and ask token services by themselves, so that no address would be checked, and
look for credentials in the home directory of whoever runs them.
"""
