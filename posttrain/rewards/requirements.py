"""What rewards read of the rows' columns, checked before a model is loaded.

Floor 3: raises DataError that names the row.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from posttrain.data.columns import column_names
from posttrain.data.rows import Row
from posttrain.errors import DataError
from posttrain.rewards import GOLD_REWARDS, ROW_COLUMNS
from posttrain.rewards.following import ACCEPTED, SHOULD_REFUSE
from posttrain.rewards.instructions.arguments import flag, texts
from posttrain.rewards.instructions.verdicts import ARGUMENTS, NAMES, read_instructions
from posttrain.rewards.scoring import require_gold

READERS: dict[str, Callable[[Mapping[str, Any]], Any]] = {  # raise ValueError
    NAMES: read_instructions,
    SHOULD_REFUSE: lambda columns: flag(columns[SHOULD_REFUSE]),
    ACCEPTED: lambda columns: texts(columns[ACCEPTED]),
}
EXAMPLES = {
    NAMES: f'"{NAMES}": ["punctuation:no_comma"], "{ARGUMENTS}": [{{}}]',
    SHOULD_REFUSE: f'"{SHOULD_REFUSE}": false',
    ACCEPTED: f'"{ACCEPTED}": ["Paris"]',
}


def require_columns(rows: Sequence[Row], rewards: Collection[str]) -> None:
    """Raise DataError unless every row has a gold answer where a reward grades, and columns of use for the others.

    Of those columns some row must have one; a row without any has no score of that reward.
    """
    if GOLD_REWARDS & set(rewards):
        require_gold(rows)
    for name in rewards:
        needed = ROW_COLUMNS.get(name, ())
        if needed and not any(column in row.columns for row in rows for column in needed):
            found = ", ".join(column_names(dict(row.columns) for row in rows)) or "none"
            raise DataError(
                f"the reward {name} needs a column {' or '.join(needed)}; found {found} beside the prompt",
                fix=f'{{"prompt": "...", {EXAMPLES[needed[0]]}}}',
            )
        for column in needed:
            _check_column(rows, column)


def _check_column(rows: Sequence[Row], column: str) -> None:
    for row in rows:
        if column not in row.columns:
            continue
        try:
            READERS[column](row.columns)
        except ValueError as error:
            named = str(error) if column == NAMES else f"{column} {error}"
            raise DataError(f"{row.origin}: {named}", fix=f'{{"prompt": "...", {EXAMPLES[column]}}}') from None
