"""What F1 shows."""

HELP = """\
compose writes a recipe: the form on the left changes the text on the right, and the other way round.
Whatever you change is checked at once, from the headers of the models; below the text stands what is
wrong, or what would be done. Nothing is written before you save, nothing merged before you run.

  Tab, Shift+Tab   the next field          Enter    choose, open a list
  ← →              change a bar            Shift    in small steps
  F2 F3 F4         form, text, plan        Delete   empty a role
  Ctrl+S           save                    Ctrl+R   save and run
  Ctrl+O           open a recipe           Ctrl+Z   take a change back
  F5               look for models again   Ctrl+Q   leave

A role takes a model or another merge; go to the merges in the list at the top of the form. "…" beside a
number varies it by component, by block (a curve), or takes pasted block weights and presets.
"""
