"""Reading rows: files, folders, globs, the Hub and URLs, each row with its place and its digest."""
