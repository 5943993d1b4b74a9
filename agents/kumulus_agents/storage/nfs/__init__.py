"""The driver `nfs`: a pool that is an export of an NFS server."""
