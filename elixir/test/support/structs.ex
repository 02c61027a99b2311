defmodule Structs do
  @moduledoc """
  Structs with encodings. In a separate file, because protocols are consolidated before the tests
  run.
  """

  defmodule Plain do
    defstruct [:name, :password, __meta__: :loaded]
  end

  defmodule Only do
    @derive {DSPex.Encodable, only: [:name, :born]}
    defstruct [:name, :born, :password]
  end

  defmodule Except do
    @derive {DSPex.Encodable, except: [:password]}
    defstruct [:name, :password]
  end

  defmodule All do
    @derive DSPex.Encodable
    defstruct [:name]
  end

  defmodule Money do
    defstruct [:amount, :currency]

    defimpl DSPex.Encodable do
      def encode(%{amount: nil}), do: raise("no amount")
      def encode(money), do: "#{money.amount} #{money.currency}"
    end
  end

  defmodule Endless do
    defstruct []

    defimpl DSPex.Encodable do
      def encode(endless), do: [endless]
    end
  end
end

defmodule Decimal do
  @moduledoc "A replacement for the package."
  defstruct [:sign, :coef, :exp]
end
