"""What a chat prints of a model's text."""

from launch.screen import show


def test_control_characters_of_a_model_are_shown_and_not_obeyed(capsys):
    """Oracle: by hand: a colour, a title, a bell, a return and a C1 control; breaks, tabs and other
    languages stay as they are.
    """
    show("a\tb\n", "\x1b[31mred \x1b]0;mine\x07", "\r\x9b2J\x7f", "  中文　😀")
    shown = "a\tb\n\\x1b[31mred \\x1b]0;mine\\x07\\r\\x9b2J\\x7f  中文　😀"
    assert capsys.readouterr().out == shown
