defprotocol DSPex.Encodable do
  @moduledoc """
  Defines how a struct is sent to a worker: in args, inputs, session data, and results of tools.

  `Date`, `Time`, `NaiveDateTime` and `DateTime` are sent in ISO 8601, `Decimal` and `URI` as
  text. Any other struct is an error with its path, because its fields may contain data that must
  not reach a model or a log. An application implements the protocol for its own structs:

      defmodule MyApp.User do
        @derive {DSPex.Encodable, only: [:name, :age]}
        defstruct [:name, :age, :password_hash]
      end

  or

      defimpl DSPex.Encodable, for: MyApp.Money do
        def encode(money), do: "\#{money.amount} \#{money.currency}"
      end

  `@derive DSPex.Encodable` sends all fields, `except: [...]` all but the given ones.
  """

  @fallback_to_any true

  @doc """
  Returns the value to send in place of the struct: text, a number, a list or a map. It may
  contain further structs.
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
      _ -> raise ArgumentError, "DSPex.Encodable accepts :only or :except, not both"
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

# `Decimal` is only a name here, so the package is not needed.
defimpl DSPex.Encodable, for: Decimal do
  # The notation of the General Decimal Arithmetic specification: it keeps every digit, and its
  # length does not depend on the exponent.
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
