"""Results on disk and the report that is drawn from them.

``run`` holds the result format, ``importers`` reads OpenOOD's folders, ``render`` writes the page.
"""
