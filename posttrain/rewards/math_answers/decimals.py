"""Complex arithmetic with as many decimal digits as asked for, by the standard library's `decimal`.

Pure: each `Arithmetic` has a context of its own and nothing reads the thread's, so neither threads nor callers meet.
Values are pairs of real and imaginary part. Raises `decimal.DecimalException` where a value does not exist or is out of
range.
"""

from decimal import Context, Decimal, DivisionByZero, InvalidOperation, Overflow
from fractions import Fraction
from functools import lru_cache

GUARD = 10
MAX_EXPONENT = 1_000_000
MAX_ANGLE = 30  # digits of an angle before its point

Complex = tuple[Decimal, Decimal]
ZERO, ONE = Decimal(0), Decimal(1)


class NotReal(InvalidOperation):
    """A function of real numbers was asked for something else."""


@lru_cache(maxsize=64)
def pi(digits: int) -> Decimal:
    """Return pi, by Machin's formula in integers."""
    unit = 10 ** (digits + 10)

    def arctan_of_inverse(x: int) -> int:
        term = total = unit // x
        n, sign = 1, 1
        while term:
            term //= x * x
            n, sign = n + 2, -sign
            total += sign * (term // n)
        return total

    value = 4 * (4 * arctan_of_inverse(5) - arctan_of_inverse(239))
    return context(digits + 5).multiply(Decimal(value), ten_to(-(digits + 10)))


def ten_to(exponent: int) -> Decimal:
    """Return a power of ten, exactly, whatever the thread's own context says."""
    return Decimal((0, (1,), exponent))


def context(digits: int) -> Context:
    """Return a decimal context that raises where a value does not exist."""
    traps = [InvalidOperation, DivisionByZero, Overflow]
    return Context(prec=digits, Emax=MAX_EXPONENT, Emin=-MAX_EXPONENT, traps=traps)


class Arithmetic:
    """Operations to `digits` significant digits."""

    def __init__(self, digits: int) -> None:
        self.digits = digits
        self.context = context(digits + GUARD)
        self.pi = pi(digits + GUARD)

    def rational(self, value: Fraction) -> Complex:
        """Return a fraction."""
        if value.denominator == 1:
            return self.context.create_decimal(value.numerator), ZERO
        return self.context.divide(Decimal(value.numerator), Decimal(value.denominator)), ZERO

    def add(self, x: Complex, y: Complex) -> Complex:
        """Return x + y."""
        return self.context.add(x[0], y[0]), self.context.add(x[1], y[1])

    def negate(self, x: Complex) -> Complex:
        """Return -x."""
        return self.context.minus(x[0]), self.context.minus(x[1])

    def multiply(self, x: Complex, y: Complex) -> Complex:
        """Return x times y."""
        times = self.context.multiply
        if not x[1] and not y[1]:
            return times(x[0], y[0]), ZERO
        real = self.context.subtract(times(x[0], y[0]), times(x[1], y[1]))
        return real, self.context.add(times(x[0], y[1]), times(x[1], y[0]))

    def divide(self, x: Complex, y: Complex) -> Complex:
        """Return x over y."""
        over = self.context.divide
        if not y[1]:
            return over(x[0], y[0]), over(x[1], y[0])
        square = self.context.fma(y[0], y[0], self.context.multiply(y[1], y[1]))
        real, imaginary = self.multiply(x, (y[0], self.context.minus(y[1])))
        return over(real, square), over(imaginary, square)

    def absolute(self, x: Complex) -> Decimal:
        """Return the modulus."""
        if not x[1]:
            return self.context.abs(x[0])
        return self.context.sqrt(self.context.fma(x[0], x[0], self.context.multiply(x[1], x[1])))

    def integer_power(self, x: Complex, n: int) -> Complex:
        """Return x to a whole power."""
        if not x[1]:
            return self.context.power(x[0], n), ZERO
        result, square = (ONE, ZERO), x
        for bit in bin(abs(n))[:1:-1]:
            if bit == "1":
                result = self.multiply(result, square)
            square = self.multiply(square, square)
        return self.divide((ONE, ZERO), result) if n < 0 else result

    def rational_power(self, x: Complex, exponent: Fraction) -> Complex:
        """Return x to an exact power: of a negative number the real root where there is one, else the principal."""
        if exponent.denominator == 1:
            return self.integer_power(x, exponent.numerator)
        power = self.rational(exponent)
        if not x[1] and x[0] < 0 and exponent.denominator % 2:
            root = self.power((self.context.minus(x[0]), ZERO), power)
            return self.negate(root) if exponent.numerator % 2 else root
        return self.power(x, power)

    def power(self, x: Complex, y: Complex) -> Complex:
        """Return x to the power y, the principal value."""
        if not x[1] and not y[1] and x[0] >= 0:
            return self.context.power(x[0], y[0]), ZERO
        return self.exp(self.multiply(y, self.ln(x)))

    def sqrt(self, x: Complex) -> Complex:
        """Return the principal square root."""
        if not x[1]:
            root = self.context.sqrt(self.context.abs(x[0]))
            return (root, ZERO) if x[0] >= 0 else (ZERO, root)
        return self.power(x, (Decimal("0.5"), ZERO))

    def exp(self, x: Complex) -> Complex:
        """Return e to the power x."""
        size = self.context.exp(x[0])
        if not x[1]:
            return size, ZERO
        sine, cosine = self.sine_and_cosine(x[1])
        return self.context.multiply(size, cosine), self.context.multiply(size, sine)

    def ln(self, x: Complex) -> Complex:
        """Return the principal natural logarithm."""
        if not any(x):
            raise NotReal
        return self.context.ln(self.absolute(x)), self.argument(x)

    def argument(self, x: Complex) -> Decimal:
        """Return the angle of x, above -pi and up to pi."""
        if not x[1]:
            return ZERO if x[0] >= 0 else self.pi
        half = self.context.divide(self.pi, Decimal(2))
        if not x[0]:
            return half if x[1] > 0 else self.context.minus(half)
        angle = self.arctan(self.context.divide(x[1], x[0]))
        if x[0] > 0:
            return angle
        return self.context.add(angle, self.pi) if x[1] > 0 else self.context.subtract(angle, self.pi)

    def sine_and_cosine(self, x: Decimal) -> tuple[Decimal, Decimal]:
        """Return both of a real angle: Taylor series at what is left of it after quarter turns."""
        if x.adjusted() > MAX_ANGLE:
            raise NotReal
        wide = context(self.digits + GUARD + MAX_ANGLE + 5)
        quarter = wide.divide(pi(self.digits + GUARD + MAX_ANGLE + 5), Decimal(2))
        turns = int(wide.to_integral_value(wide.divide(x, quarter)))
        rest = self.context.plus(wide.subtract(x, wide.multiply(quarter, Decimal(turns))))
        sine, cosine = self._series(rest, rest, 1), self._series(ONE, rest, 0)
        for _ in range(turns % 4):
            sine, cosine = cosine, self.context.minus(sine)
        return sine, cosine

    def _series(self, first: Decimal, x: Decimal, n: int) -> Decimal:
        """Return the alternating sum of x^n / n! over every second n from where it starts."""
        square = self.context.multiply(x, x)
        term = total = first
        smallest = ten_to(-(self.digits + GUARD + 2))
        while term.copy_abs() > smallest:
            n += 2
            term = self.context.divide(self.context.multiply(term, square), Decimal(-n * (n - 1)))
            total = self.context.add(total, term)
        return total

    def arctan(self, x: Decimal) -> Decimal:
        """Return the angle of a real tangent: halved four times, then the series."""
        if x.copy_abs() > 1:
            half = self.context.divide(self.pi, Decimal(2) if x > 0 else Decimal(-2))
            return self.context.subtract(half, self.arctan(self.context.divide(ONE, x)))
        for _ in range(4):
            root = self.context.sqrt(self.context.fma(x, x, ONE))
            x = self.context.divide(x, self.context.add(ONE, root))
        square = self.context.minus(self.context.multiply(x, x))
        power = total = x
        n = 1
        smallest = ten_to(-(self.digits + GUARD + 2))
        while power.copy_abs() > smallest:
            n += 2
            power = self.context.multiply(power, square)
            total = self.context.add(total, self.context.divide(power, Decimal(n)))
        return self.context.multiply(total, Decimal(16))

    def real(self, x: Complex) -> Decimal:
        """Return a value that must be real."""
        if x[1]:
            raise NotReal
        return x[0]
