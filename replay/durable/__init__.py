"""Memories that outlive their server: rows in files, found again by one scan.

`disk` is all that is asked of a file system. `file` keeps a memory's rows and writers in one file,
`draws` what a table has drawn of them in another, `folder` knows the files of a server, `flusher` syncs
them in the background, and `recovery` finds everything again.
"""
