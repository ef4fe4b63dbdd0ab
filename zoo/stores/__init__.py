"""Object stores (gs://, s3://), which have no folders and no renames: single objects, and folders as sets of objects.

`objects`: one object at a time, with retries. `folders`: folders of files, complete once their last object is there.
`lease`: one writer at a time. `object_cache`: a local cache of bounded size.
"""
