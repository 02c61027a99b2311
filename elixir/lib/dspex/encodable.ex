defprotocol DSPex.Encodable do
  @moduledoc """
  How a struct is written in what goes to a worker: args, inputs, session data, results of tools.

  `Date`, `Time`, `NaiveDateTime` and `DateTime` are written in ISO 8601, `Decimal` and `URI` as
  text. Any other struct is refused with its path, because its fields may hold what no model and no
  log should see. An application says what a struct of its own means:

      defmodule MyApp.User do
        @derive {DSPex.Encodable, only: [:name, :age]}
        defstruct [:name, :age, :password_hash]
      end

  or

      defimpl DSPex.Encodable, for: MyApp.Money do
        def encode(money), do: "\#{money.amount} \#{money.currency}"
      end

  `@derive DSPex.Encodable` takes all fields, `except: [...]` all but some.
  """

  @fallback_to_any true

  @doc """
  Returns what stands for the struct: text, a number, a list or a map, in which further structs may
  stand.
  """
  @spec encode(t()) :: term()
  def encode(struct)
end

defimpl DSPex.Encodable, for: Any do
  defmacro __deriving__(module, struct, options) do
    fields = fields(module, struct |> Map.from_struct() |> Map.keys(), options)

    quote do
      defimpl DSPex.Encodable, for: unquote(module) do
        def encode(struct), do: Map.take(struct, unquote(fields))
      end
    end
  end

  defp fields(module, fields, options) do
    case Keyword.validate!(options, [:only, :except]) do
      [] -> fields
      [only: only] -> known(module, only, fields)
      [except: except] -> fields -- known(module, except, fields)
      _ -> raise ArgumentError, "DSPex.Encodable takes :only or :except, not both"
    end
  end

  defp known(module, named, fields) do
    case named -- fields do
      [] -> named
      unknown -> raise ArgumentError, "#{inspect(module)} has no fields #{inspect(unknown)}"
    end
  end

  def encode(struct), do: raise(Protocol.UndefinedError, protocol: @protocol, value: struct)
end

for module <- [Date, Time, NaiveDateTime, DateTime] do
  defimpl DSPex.Encodable, for: module do
    def encode(value), do: @for.to_iso8601(value)
  end
end

defimpl DSPex.Encodable, for: URI do
  def encode(uri), do: URI.to_string(uri)
end

# By its name: the package need not be there.
defimpl DSPex.Encodable, for: Decimal do
  # As the specification of decimal arithmetic writes numbers, which keeps each digit and takes no
  # more room than the number itself.
  def encode(%{sign: sign, coef: :NaN}), do: sign(sign) <> "NaN"
  def encode(%{sign: sign, coef: :inf}), do: sign(sign) <> "Infinity"

  def encode(%{sign: sign, coef: coef, exp: exp}) do
    digits = Integer.to_string(coef)
    adjusted = exp + byte_size(digits) - 1
    plain = exp <= 0 and adjusted >= -6
    sign(sign) <> if(plain, do: plain(digits, -exp), else: scientific(digits, adjusted))
  end

  defp sign(-1), do: "-"
  defp sign(_), do: ""

  defp plain(digits, 0), do: digits

  defp plain(digits, places) do
    {whole, fraction} = digits |> String.pad_leading(places + 1, "0") |> String.split_at(-places)
    whole <> "." <> fraction
  end

  defp scientific(<<first::binary-1, rest::binary>>, adjusted) do
    fraction = if rest == "", do: "", else: "." <> rest
    first <> fraction <> "E" <> if(adjusted < 0, do: "", else: "+") <> Integer.to_string(adjusted)
  end
end
