def write_pictures(folder, runner, threats, result):
    pass
