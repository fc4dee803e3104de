"""From a module to a graph whose nodes know their values."""
