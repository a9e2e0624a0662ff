"""What F1 shows."""

HELP = """\
The form on the left changes the text on the right, and the other way round. Whatever you change is \
checked at once, from the headers of the models: below the text stands what is wrong, or what would be \
done. No recipe is written before you save, nothing merged before you run.

  Tab, Shift+Tab  the next field
  Enter           choose, open, press
  ← → , Shift     change a bar; in small steps
  Delete          empty a role
  F2 F3 F4        form, text, plan
  F5              look for models again
  Ctrl+S          save
  Ctrl+R          save and run
  Ctrl+O          open another recipe
  Ctrl+Z          take a change back
  Ctrl+Q          leave

A role takes a model or another merge; go to the merges in the list at the top of the form. "…" beside \
a number varies it by component, by block (a curve), or takes pasted block weights and presets; beside \
dtype and vae it shows the other components. "more" shows what else a recipe may say.
"""
