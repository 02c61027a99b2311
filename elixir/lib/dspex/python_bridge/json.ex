defmodule DSPex.PythonBridge.JSON do
  @moduledoc """
  Encodes and decodes JSON with a module of the application: the module in `config :dspex_bridge,
  json: …`, which exports `encode_to_iodata!/1` and `decode!/1`, or the first of Jason, Elixir's
  `JSON`, and OTP's `:json` that is available.

  Only the option `format: :json` needs such a module. The default is Erlang's external term
  format.
  """

  @compile {:no_warn_undefined,
            [{:json, :encode, 2}, {:json, :encode_value, 2}, {:json, :decode, 3}]}

  @candidates [Jason, JSON, :json]

  @doc """
  Returns the JSON module, or `nil` if there is none.
  """
  @spec module() :: module() | nil
  def module do
    Application.get_env(:dspex_bridge, :json) ||
      Enum.find(@candidates, &(Code.ensure_loaded?(&1) and usable?(&1)))
  end

  @doc """
  Encodes a term. Raises what the JSON module raises, or `ArgumentError` if there is no module.
  """
  @spec encode!(term()) :: iodata()
  def encode!(term) do
    case module!() do
      :json -> :json.encode(term, &encode_value/2)
      module -> module.encode_to_iodata!(term)
    end
  end

  @doc "Decodes a text into a term with string keys. Raises as `encode!/1` does."
  @spec decode!(binary()) :: term()
  def decode!(text) do
    case module!() do
      :json -> text |> :json.decode(nil, %{null: nil}) |> elem(0)
      module -> module.decode!(text)
    end
  end

  # `:json` would encode `nil` as the string "nil".
  defp encode_value(nil, _encode), do: "null"
  defp encode_value(value, encode), do: :json.encode_value(value, encode)

  # An application may have a different module named JSON.
  defp usable?(:json), do: function_exported?(:json, :decode, 3)

  defp usable?(module) do
    function_exported?(module, :encode_to_iodata!, 1) and function_exported?(module, :decode!, 1)
  end

  defp module! do
    module() ||
      raise ArgumentError,
            "no JSON module found: add Jason, use Elixir 1.18 or OTP 27, or set " <>
              "config :dspex_bridge, json: MyJSON"
  end
end
