BEFORE = {}
