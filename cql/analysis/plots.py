def draw_all(run): pass
