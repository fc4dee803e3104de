"""Small networks that were once converted wrongly, crashed, or were refused without need; each with the right value."""
