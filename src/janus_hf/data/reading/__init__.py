"""Functions that read what users name as sources, and refuse what holds content that would be lost.

`content` says what a value holds, `turns` reads conversations, `columns` sorts the columns of a source, and `folders`
sorts the files of a folder.
"""
