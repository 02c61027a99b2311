defmodule DSPex.PythonBridge.JSON do
  @moduledoc """
  JSON, where the application has a module for it: the one that `config :dspex_bridge, json: …`
  names (with `encode_to_iodata!/1` and `decode!/1`), else Jason, Elixir's `JSON` or OTP's `:json`.

  The bridge itself speaks Erlang's external term format and needs none.
  """

  @compile {:no_warn_undefined,
            [{:json, :encode, 2}, {:json, :encode_value, 2}, {:json, :decode, 3}]}

  @candidates [Jason, JSON, :json]

  @doc """
  The module that is used, or `nil`.
  """
  @spec module() :: module() | nil
  def module do
    Application.get_env(:dspex_bridge, :json) ||
      Enum.find(@candidates, &(Code.ensure_loaded?(&1) and usable?(&1)))
  end

  @doc "Encodes a term. Raises what the module raises, and ArgumentError where there is none."
  @spec encode!(term()) :: iodata()
  def encode!(term) do
    case module!() do
      :json -> :json.encode(term, &encode_value/2)
      module -> module.encode_to_iodata!(term)
    end
  end

  @doc "Decodes a text; keys are strings. Raises as `encode!/1` does."
  @spec decode!(binary()) :: term()
  def decode!(text) do
    case module!() do
      :json -> text |> :json.decode(nil, %{null: nil}) |> elem(0)
      module -> module.decode!(text)
    end
  end

  # `:json` takes `nil` for the string "nil".
  defp encode_value(nil, _encode), do: "null"
  defp encode_value(value, encode), do: :json.encode_value(value, encode)

  # An application's own module may be called JSON as well.
  defp usable?(:json), do: function_exported?(:json, :decode, 3)

  defp usable?(module) do
    function_exported?(module, :encode_to_iodata!, 1) and function_exported?(module, :decode!, 1)
  end

  defp module! do
    module() ||
      raise ArgumentError,
            "JSON needs a module that the application brings: Jason, Elixir 1.18, OTP 27, " <>
              "or config :dspex_bridge, json: MyJSON"
  end
end
